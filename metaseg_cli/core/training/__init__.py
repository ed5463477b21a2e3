"""One plan, one loop."""
