"""The pure part: schema, mixing, consensus measures, encodings. No I/O, no clock, no threads, no configuration."""
