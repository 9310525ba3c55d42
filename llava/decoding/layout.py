"""The tables by which models and calls come to the compiled functions: 64-bit integers, addresses among them."""

# How the weight of a linear layer is stored. INT8_BYTES: as INT8, read by VNNI, 64 inputs at once.
FLOAT32, FLOAT16, INT8, INT8_BYTES = range(4)
BYTES = 64

# A linear layer: how it is stored, its shape, and where its parts are (0: it has none).
KIND, OUTPUTS, INPUTS, WEIGHT, SCALES, BIAS = range(6)
LINEAR = 6

# A layer of the decoder: where its norms are, then its four linear layers.
ATTENTION_NORM, MLP_NORM, QUERY_NORM, KEY_NORM = range(4)
QKV, OUT, GATE_UP, DOWN = (4 + LINEAR * index for index in range(4))
LAYER = 4 + 4 * LINEAR

# The model: its shape, then where the norm's constant, the last norm, the embedding, the layers and the head are, and
# how many slots back a row sees (0: all). Without layers, an embedding and a last norm (0), it is the head alone, and
# hidden states are there already.
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, MIDDLE, VOCABULARY = range(7)
EPSILON, NORM, EMBEDDING, HALF_EMBEDDING, FIRST_LAYER, HEAD, WINDOWED = range(7, 14)

# A row: its token (negative: its hidden state is there already), its sequence's keys and values and how many slots they
# have, its own slot, the first that it sees, its cosines and sines, whether scores are wanted, and how attention looks
# at it: alone (0), or with so many rows of its sequence that begin here, in tiles; -1: with an earlier one.
TOKEN, CACHE, SLOTS, SLOT, FIRST, COSINES, SINES, SCORED, TILED = range(9)
ROW = 9

# A thread's scratch memory: products that it holds at once, then a panel of a weight of 8 bits: what its sums begin
# with, and so many outputs' weights, laid out anew.
PANEL, PANEL_ROWS = 64, 4
SUMS = PANEL * PANEL_ROWS

# A step: the model, the rows, where the scores go; memory that all threads share (first of it the hidden states), and
# that of each.
MODEL, ROWS, FIRST_ROW, LOGITS, SHARED, PRIVATE, PRIVATE_BYTES = range(7)

# A linear layer of 8 bits alone: its own table, the number of rows, where they, the outputs, the rows in 8 bits and
# their scales are, and the scratch memory of each thread.
ALONE, ALONE_ROWS, INPUT, OUTPUT, READY, READY_SCALES, SCRATCH, SCRATCH_BYTES = range(8)

# Attention: sequences, heads, those that share keys, their size, queries and slots of a sequence, the slot of the first
# query, how many slots back it sees (0: all); then where queries, keys and values are and how many bytes lie between
# their sequences, heads and positions; the outputs, and the memory of each thread.
SEQUENCES, QUERY_HEADS, KEY_HEADS, SIZE, QUERIES, KEYS, START, WINDOW = range(8)
Q, K, V = 8, 12, 16
OF_SEQUENCE, OF_HEAD, OF_POSITION = 1, 2, 3  # after the address
Y, MEMORY, MEMORY_BYTES = 20, 21, 22
TILE_QUERIES, TILE_KEYS = 32, 128  # queries, and keys, that are looked at together


def tile_bytes(size: int) -> int:
    """Bytes of a thread's memory for attention: queries, means, keys, scores, largest ones, sums of weights."""
    return 4 * (TILE_QUERIES * (2 * size + TILE_KEYS + 2) + TILE_KEYS * size) + BYTES


def scratch(inputs: int) -> int:
    """Bytes of a thread's scratch memory, for linear layers of so many inputs at most; a line more, to begin at one."""
    return 4 * SUMS + 4 * PANEL + PANEL * inputs + BYTES
