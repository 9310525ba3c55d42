"""The tables by which a model and a step come to the compiled function: 64-bit integers, addresses among them."""

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

# The model: its shape, then where the norm's constant, the last norm, the embedding, the layers and the head are.
# Without layers, an embedding and a last norm (0), it is the head alone, and hidden states are there already.
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, MIDDLE, VOCABULARY = range(7)
EPSILON, NORM, EMBEDDING, HALF_EMBEDDING, FIRST_LAYER, HEAD = range(7, 13)

# A row: its token (negative: its hidden state is there already), its sequence's keys and values and how many slots they
# have, its own slot, the first that it sees, its cosines and sines, and whether scores are wanted.
TOKEN, CACHE, SLOTS, SLOT, FIRST, COSINES, SINES, SCORED = range(8)
ROW = 8

SUMS = 16  # products that a thread holds at once

# A step: the model, the rows, where the scores go; memory that all threads share (first of it the hidden states), and
# that of each.
MODEL, ROWS, FIRST_ROW, LOGITS, SHARED, PRIVATE, PRIVATE_BYTES = range(7)
