"""The synthetic world; `featinv_fast.demo` names what is meant for use.

A scene is drawn in steps that can be read in this order: `random_numbers`, `vocabulary`, `scenes` (the description),
`shapes`, `patterns` and `backgrounds` (what things look like), `surfaces` (things on the pixel grid), `painting` and
`line_drawing` (light and ink), `render`.
"""
