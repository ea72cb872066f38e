"""Generated from protos/clawbox/v1; never edited."""
