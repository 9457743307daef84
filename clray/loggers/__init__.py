"""Loggers: where the accuracy of a running trial is shown besides its files; one file each."""

TABLE: dict[str, tuple[str, str]] = {
    "tensorboard": ("clray.loggers.tensorboard:TensorBoard", "event files in tensorboard/ beside the results"),
    "wandb": ("clray.loggers.wandb:WandB", "a run of Weights & Biases, online or offline"),
    "mlflow": ("clray.loggers.mlflow:MLflow", "a run of MLflow, on a server or in a database file"),
}
