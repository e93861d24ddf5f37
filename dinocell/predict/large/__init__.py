"""Images too large for memory: streamed windows, decoding in blocks, work that can be resumed."""
