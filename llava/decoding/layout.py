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
# have, its own slot, its cosines and sines, whether scores are wanted, and how many rows of its sequence begin here.
TOKEN, CACHE, SLOTS, SLOT, COSINES, SINES, SCORED, TOGETHER = range(8)
ROW = 8

# A thread's scratch memory: products that it holds at once, then a panel of a weight of 8 bits: what its sums begin
# with, and so many outputs' weights, laid out anew.
PANEL, PANEL_ROWS = 64, 4
SUMS = PANEL * PANEL_ROWS

# A step: the model, the rows, where the scores go; memory that all threads share (first of it the hidden states), that
# of each, and that for parts of attention.
MODEL, ROWS, FIRST_ROW, LOGITS, SHARED, PRIVATE, PRIVATE_BYTES, PARTS = range(8)

# A linear layer alone, of 8 bits or in float32: its own table, the number of rows, where they, the outputs, the rows in
# 8 bits and their scales are, and the scratch memory of each thread.
ALONE, ALONE_ROWS, INPUT, OUTPUT, READY, READY_SCALES, SCRATCH, SCRATCH_BYTES = range(8)

# Attention: sequences, heads, those that share keys, their size, queries and slots of a sequence, the slot of the first
# query, how many slots back it sees (0: all); then where queries, keys and values are and how many bytes lie between
# their sequences, heads and positions; the outputs, and the memory of each thread.
SEQUENCES, QUERY_HEADS, KEY_HEADS, SIZE, QUERIES, KEYS, START, WINDOW = range(8)
Q, K, V = 8, 12, 16
OF_SEQUENCE, OF_HEAD, OF_POSITION = 1, 2, 3  # after the address
Y, MEMORY, MEMORY_BYTES = 20, 21, 22
TILE_QUERIES, TILE_KEYS = 32, 128  # queries, and keys, that are looked at together
APART = 8  # rows of a step up to which threads share the tiles of keys of each

# What lies between the products, of rows alone. RMSNorm: rows, their length, where they, the weight, the constant and
# the outputs are. Turning: rows, heads of each and their size, then where rows are and the bytes between them, where
# cosines and sines are and for how many rows (then they begin anew), and the outputs. Gating: rows, outputs of each,
# and where gates and what they let through, side by side, and the outputs are.
NORM_ROWS, NORM_WIDTH, NORM_X, NORM_WEIGHT, NORM_EPSILON, NORM_Y = range(6)
TURN_ROWS, TURN_HEADS, TURN_SIZE, TURN_X, TURN_STRIDE, TURN_COSINES, TURN_SINES, TURN_PERIOD, TURN_Y = range(9)
GATE_ROWS, GATE_WIDTH, GATE_X, GATE_Y = range(4)


def part_bytes(size: int) -> int:
    """Bytes of one query's part of attention, in whole lines: the mean, the largest score, the sum of weights."""
    return 4 * size + BYTES


def tile_bytes(size: int) -> int:
    """Bytes of a thread's memory for attention, in whole lines: queries, keys, scores, parts of a tile and of all.

    numba compiles each function here by itself: none can call another.
    """
    return 4 * (TILE_QUERIES * (size + TILE_KEYS) + TILE_KEYS * size) + 2 * TILE_QUERIES * (4 * size + BYTES)


def scratch(inputs: int) -> int:
    """Bytes of a thread's scratch memory, for linear layers of so many inputs at most; a line more, to begin at one."""
    return 4 * SUMS + 4 * PANEL + PANEL * inputs + BYTES
