"""The networks in plain torch, readable on one screen each."""
