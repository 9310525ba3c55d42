"""One compiled function for a decoding step on a CPU: what it computes, how it is built, and how a model runs in it."""
