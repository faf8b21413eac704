"""The wire contract's messages, generated from compression.proto."""
