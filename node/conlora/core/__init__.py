"""The pure part: schema, mixing, consensus measures, codec. No I/O, no clock, no threads, no configuration."""
