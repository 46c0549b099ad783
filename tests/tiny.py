"""The sizes of everything that the tests make, in one place."""

BATCH_SIZE, SEQ_LEN, VOCAB_SIZE = 4, 8, 340
DATA = dict(vocab_size=VOCAB_SIZE, batch_size=BATCH_SIZE, seq_len=SEQ_LEN)
NETWORK = dict(num_layers=2, d_model=8, num_heads=2, d_ffn=16, mem_len=6, cutoffs=[20, 60])
TRAINING = dict(epochs=2, warmup_steps=20, max_lr=0.01, log_every=7)

# A network whose training begins in half the time. It still searches, and has a memory.
QUICK = dict(num_layers=1, cutoffs=[], opt_name="sgd")


def as_flags(**settings) -> list[str]:
    """Settings as they are given on the command line."""
    given = []
    for name, value in settings.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else value
        given.append(f"--{name}={text}")
    return given
