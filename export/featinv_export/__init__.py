"""The exporter: checkpoint to engine folder."""
