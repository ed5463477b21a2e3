"""The viewer: three planes of a scan with what was found in it, drawn in the browser."""
