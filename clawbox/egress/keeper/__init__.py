"""The keeper: the one process that holds the master key, the identity key and every credential.

It is to secrets what ssh-agent is to keys. Control tells it, on its own channel, which sidecar gets which
credentials, hands it the descriptor over which that sidecar gets them, and never sees a value.
"""
