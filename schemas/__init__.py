"""The language that devices and core speak: ids, topics, envelopes, contracts, policies, receipts, rollouts.

Pure data: nothing here opens a file of the user's, a socket or a clock, and nothing here imports the other rooms.
"""
