"""Strategies: what a learner does against forgetting; one file each."""

TABLE: dict[str, tuple[str, str]] = {
    "finetune": ("clray.strategies.finetune:Finetune", "plain training, one task after the other: the lower bound"),
}
