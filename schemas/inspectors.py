"""Names, columns, versions and patterns of the inspectors that also run on a device. No arithmetic, no library.

Core and device read this one page, so that a column means the same wherever it was computed.
"""

from collections.abc import Mapping

from schemas.contract import Column, ColumnType

_F64, _I32, _TEXT = ColumnType.FLOAT64, ColumnType.INT32, ColumnType.STRING

# What changes a builtin inspector's answers changes its number here: cached answers of the old one are then not used, and a
# device that has the old one does not answer for the new one.
VERSIONS: Mapping[str, int] = {"image": 1, "exif": 1, "text": 1, "onnx": 1}
ON_DEVICE = ("image", "text")

# Pictures are looked at no larger than this, so that the figures mean the same for every camera.
SIDE_PX = 512
MAX_TEXT_CHARS = 1_000_000

PICTURE_COLUMNS = (
    Column("image_width", _I32, unit="px"),
    Column("image_height", _I32, unit="px"),
    Column("image_luma_mean", _F64, description="0 black to 255 white"),
    Column("image_luma_contrast", _F64, description="standard deviation of the luma"),
    Column("image_sharpness", _F64, description="variance of the Laplacian; low is blurred"),
    Column("image_entropy", _F64, unit="bit", description="of the luma's histogram; 0 is one shade"),
    Column("image_colourfulness", _F64, description="Hasler and Süsstrunk; 0 is grey"),
    Column("image_phash", _TEXT, description="64 bits in hexadecimal; alike pictures differ in few of them"),
)

# Counted in every text; each is written so that ordinary log lines do not match by accident, for linear-time engines (no
# look-around, no back references), and so that one that goes back on itself stays near linear.
PATTERNS: Mapping[str, str] = {
    "emails": r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}",
    "ipv4s": r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b",
    "macs": r"\b(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}\b",
    "phones": r"(?:\+|\b00)[1-9]\d{0,2}(?:[ ./-]?\d{2,4}){2,4}\b",
    "ibans": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b",
    "cards": r"\b(?:4\d{3}|5[1-5]\d{2}|3[47]\d{2}|6011)(?:[ -]?\d{4}){2}[ -]?\d{3,4}\b",
    "users": r"(?i)\b(?:user(?:name)?|login|uid)[=: ]+[\"']?[a-z_][a-z0-9._-]{1,63}",
    "secrets": r"(?i)\b(?:password|passwd|secret|token|api[_-]?key)[=:][ \"']?[^\s\"',;]{4,}",
}
TEXT_COLUMNS = tuple(Column(f"text_{name}", _I32, description=f"how often {name} occurs") for name in PATTERNS)


def device_columns(use: str) -> tuple[Column, ...]:
    """The columns that an inspector gives on a device; none of one that a device does not have."""
    return {"image": PICTURE_COLUMNS, "text": TEXT_COLUMNS}.get(use, ())
