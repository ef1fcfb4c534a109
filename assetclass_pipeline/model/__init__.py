"""Pure Python: words, options, scores and states; no I/O."""
