"""How the columns of the built-in network_flow contract are called in a Zeek log."""

# Zeek's names of a connection's four corners, and how the built-in network_flow contract calls them.
CONN_RENAME = {
    "id.orig_h": "src_ip", "id.orig_p": "src_port", "id.resp_h": "dst_ip", "id.resp_p": "dst_port",
    "id_orig_h": "src_ip", "id_orig_p": "src_port", "id_resp_h": "dst_ip", "id_resp_p": "dst_port",
    "duration": "duration_s", "detailedlabel": "detailed_label", "detailed-label": "detailed_label",
}  # fmt: skip
