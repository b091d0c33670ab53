"""The gated activation of a transformer's feed-forward layer."""
