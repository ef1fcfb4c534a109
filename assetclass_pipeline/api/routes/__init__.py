"""One module for each group of calls: parse, call the engine, answer."""
