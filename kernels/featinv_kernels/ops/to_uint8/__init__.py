"""Decoded images to bytes on the device."""
