"""Strategies: what a learner does against forgetting; one file each."""

TABLE: dict[str, tuple[str, str]] = {
    "finetune": ("clray.strategies.finetune:Finetune", "plain training, one task after the other: the lower bound"),
    "l2": ("clray.strategies.l2:L2", "penalty on the distance to the weights after the previous task"),
    "ewc": ("clray.strategies.ewc:EWC", "elastic weight consolidation: penalty weighted by Fisher information, separate or online"),
    "si": ("clray.strategies.si:SI", "synaptic intelligence: penalty weighted by each parameter's share in lowering the loss"),
    "mas": ("clray.strategies.mas:MAS", "memory aware synapses: penalty weighted by the sensitivity of the output"),
    "lwf": ("clray.strategies.lwf:LwF", "learning without forgetting: distillation from the network before the task"),
    "er": ("clray.strategies.er:ER", "experience replay from a small memory"),
    "der": ("clray.strategies.der:DER", "dark experience replay: replay that matches stored logits"),
    "der++": ("clray.strategies.der:DERPlusPlus", "dark experience replay with logits and labels"),
    "agem": ("clray.strategies.agem:AGEM", "gradient projected so that the mean loss on a memory does not rise"),
    "gem": ("clray.strategies.gem:GEM", "gradient projected so that the loss of no earlier task rises"),
    "cumulative": ("clray.strategies.cumulative:Cumulative", "every batch from all data of the tasks so far: an upper bound"),
    "shrink_perturb": ("clray.strategies.shrink_perturb:ShrinkPerturb", "weights shrunk and perturbed before every task"),
}
