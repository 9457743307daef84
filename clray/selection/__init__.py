"""Selections: which samples of a task are remembered; one file each. NumPy in, row numbers out."""

TABLE: dict[str, tuple[str, str]] = {
    "random": ("clray.selection.random:Random", "uniform without replacement over the task"),
    "class_balanced": ("clray.selection.class_balanced:ClassBalanced", "uniform within each class, equal counts"),
    "reservoir": ("clray.selection.reservoir:Reservoir", "one pass in training order, every sample kept with the same probability"),
    "kmeans": ("clray.selection.kmeans:KMeans", "samples nearest to the centroids of each class, on pixels or on hidden states"),
    "gss": ("clray.selection.gss:GSS", "greedy gradient-based selection: samples whose gradients point elsewhere"),
    "lambda": ("clray.selection.uncertainty:Uncertainty", "the samples that the network is least sure of"),
    "herding": ("clray.selection.herding:Herding", "samples whose mean hidden state stays nearest to that of their class"),
}
