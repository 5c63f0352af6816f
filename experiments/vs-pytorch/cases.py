"""Rows of the table, and the sides that take turns at each row."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One row: the shapes of the memory and of the sequence that is stored and read, chunk by chunk."""

    dim: int
    tokens: int
    chunk: int
    heads: int = 1
    batch: int = 1

    @property
    def dim_head(self):
        return self.dim // self.heads

    @property
    def label(self):
        several = f" ({self.batch})" if self.batch > 1 else ""
        return f"{self.dim}, {self.tokens}, {self.chunk}, {self.heads}{several}"

    @property
    def flop(self):
        """Operations that the algorithm needs for one forward; an implementation may spend more.

        Per token and head, d = dim_head, c = chunk: projections and combination 8 h d² (6 d² with
        one head, which has none to combine), gradient, update and read 26 d², causal attention
        8 (c + 1) d.
        """
        d, h = self.dim_head, self.heads
        outside = 8 * h if h > 1 else 6
        a_head = (26 + outside) * d**2 + 8 * (self.chunk + 1) * d
        return self.batch * self.tokens * h * a_head


CASES = [
    Case(64, 1024, 16),
    Case(128, 1024, 16),
    Case(256, 1024, 32),
    Case(384, 1024, 64),
    Case(64, 8192, 16, batch=2),
    Case(256, 2048, 64, heads=4),
    Case(384, 4096, 64, heads=6),
    Case(512, 8192, 64, heads=8),
    Case(64, 4096, 2),
]

# Time per token at both lengths shows whether the cost is linear.
LINEAR = Case(64, 10_000, 16), Case(64, 1_000_000, 16)
LINEAR_QUICK = Case(64, 10_000, 16), Case(64, 100_000, 16)

# PyTorch's sides, in the order of their turns: as installed, with an allocator that keeps freed
# memory, under torch.compile, and a different, later model for orientation.
PYTORCH = {
    "eager": "eager",
    "kept": "eager, memory kept",
    "compiled": "torch.compile",
    "latest": "0.5.5, eager",
}

# Version of titans_pytorch for each side. Both have the same name, so each is installed in its own directory.
TITANS = {"eager": "0.0.17", "kept": "0.0.17", "compiled": "0.0.17", "latest": "0.5.5"}


class Failure(Exception):
    """Reason on one line why the comparison has no results."""
