"""TMO: where each turn of a dialogue runs, and which of its modalities go along (arXiv 2502.11007)."""

import sim.policies  # noqa: F401 - comes first, as its policies import what lies here
