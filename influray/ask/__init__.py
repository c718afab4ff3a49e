"""Questions to a finished run: query engine, index, explanations, and both over HTTP."""
