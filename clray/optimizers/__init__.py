"""Optimizers: options classes that build an optax transformation from traced hyperparameters."""

TABLE: dict[str, tuple[str, str]] = {
    "sgd": ("clray.optimizers.sgd:SGD", "stochastic gradient descent; momentum, nesterov, weight decay added to the gradient"),
    "adam": ("clray.optimizers.adam:Adam", "Adam (Kingma & Ba 2015); weight decay added to the gradient"),
    "adamw": ("clray.optimizers.adam:AdamW", "Adam with decoupled weight decay (Loshchilov & Hutter 2019)"),
    "rmsprop": ("clray.optimizers.rmsprop:RMSProp", "RMSProp (Tieleman & Hinton 2012)"),
}
