"""What people call things who come from Keras, Lightning, Hugging Face or scikit-learn, and our word for it.

A foreign word is never accepted: it only makes the error name the right one.
"""

from __future__ import annotations

KEYS = {
    "source": "data", "dataset": "data", "dataloader": "data", "split": "splits", "validation_split": "splits",
    "test_size": "splits", "network": "model", "net": "model", "module": "model", "layers": "model",
    "architecture": "model", "criterion": "loss", "loss_fn": "loss", "loss_function": "loss", "objective": "loss",
    "metric": "metrics", "optim": "optimizer", "opt": "optimizer", "scheduler": "schedule", "lr_scheduler": "schedule",
    "lr_schedule": "schedule", "lr_scheduler_type": "schedule", "callback": "callbacks", "hooks": "callbacks",
    "trainer": "fit", "train": "fit", "training": "fit", "random_state": "seed", "seed_everything": "seed",
    "base": "extends", "_base_": "extends", "defaults": "extends", "run_name": "name", "experiment": "name",
    "lr": "optimizer.<name>.lr", "learning_rate": "optimizer.<name>.lr", "transforms": "data.<name>.transform",
    "augment": "data.<name>.augment", "augmentation": "data.<name>.augment", "augmentations": "data.<name>.augment",
    "transform": "data.<name>.transform", "warmup": "schedule.<name>.warmup",
    "weight_decay": "optimizer.<name>.weight_decay", "early_stopping": "callbacks.EarlyStopping",
}  # fmt: skip

FIT = {
    "max_epochs": "epochs", "num_epochs": "epochs", "n_epochs": "epochs", "num_train_epochs": "epochs",
    "nb_epoch": "epochs", "max_iter": "max_steps", "steps": "max_steps", "iterations": "max_steps",
    "train_batch_size": "batch_size", "per_device_train_batch_size": "batch_size", "bs": "batch_size",
    "accumulate_grad_batches": "accumulate", "gradient_accumulation_steps": "accumulate",
    "grad_accum_steps": "accumulate", "gradient_clip_val": "clip_norm", "max_grad_norm": "clip_norm",
    "clipnorm": "clip_norm", "grad_clip": "clip_norm", "clip_grad_norm": "clip_norm", "amp": "precision",
    "mixed_precision": "precision", "fp16": "precision", "bf16": "precision", "dtype": "precision",
    "jit_compile": "compile", "torch_compile": "compile", "accelerator": "device", "devices": "device",
    "gpus": "device", "num_workers": "workers", "dataloader_num_workers": "workers",
    "gradient_checkpointing": "activation_checkpointing", "activation_checkpoint": "activation_checkpointing",
    "checkpoint_activations": "activation_checkpointing", "remat": "activation_checkpointing",
    "rematerialize": "activation_checkpointing", "use_checkpoint": "activation_checkpointing",
    "check_val_every_n_epoch": "eval_every", "validation_freq": "eval_every", "eval_steps": "eval_every",
    "val_check_interval": "eval_every", "benchmark": "deterministic", "time_limit": "max_time",
}  # fmt: skip
KEYS |= {word: f"fit.{right}" for word, right in FIT.items()}

NAMES: dict[str, dict[str, str]] = {
    "losses": {
        "sparse_categorical_crossentropy": "cross_entropy", "categorical_crossentropy": "cross_entropy",
        "crossentropy": "cross_entropy", "ce": "cross_entropy", "CrossEntropyLoss": "cross_entropy",
        "softmax_cross_entropy": "cross_entropy", "log_loss": "cross_entropy",
        "binary_crossentropy": "binary_cross_entropy_with_logits", "bce": "binary_cross_entropy_with_logits",
        "BCEWithLogitsLoss": "binary_cross_entropy_with_logits", "bce_with_logits": "binary_cross_entropy_with_logits",
        "BCELoss": "binary_cross_entropy", "NLLLoss": "nll_loss", "mse": "mse_loss", "MSELoss": "mse_loss",
        "mean_squared_error": "mse_loss", "squared_error": "mse_loss", "l2": "mse_loss", "mae": "l1_loss",
        "mean_absolute_error": "l1_loss", "L1Loss": "l1_loss", "huber": "huber_loss", "HuberLoss": "huber_loss",
        "SmoothL1Loss": "smooth_l1_loss", "PoissonNLLLoss": "poisson_nll_loss", "poisson": "poisson_nll_loss",
    },
    "metrics": {
        "acc": "accuracy", "sparse_categorical_accuracy": "accuracy", "categorical_accuracy": "accuracy",
        "f1_score": "f1", "F1Score": "f1", "fbeta": "f1", "auc": "auroc", "roc_auc": "auroc", "roc_auc_score": "auroc",
        "AUC": "auroc", "ap": "average_precision", "average_precision_score": "average_precision", "mcc":
        "matthews_corrcoef", "kappa": "cohen_kappa", "iou": "jaccard_index", "jaccard": "jaccard_index",
        "precision_score": "precision", "recall_score": "recall", "sensitivity": "recall",
        "balanced_accuracy_score": "balanced_accuracy", "cohen_kappa_score": "cohen_kappa",
        "binary_accuracy": "accuracy", "Accuracy": "accuracy", "top5": "top_k_accuracy", "top_5": "top_k_accuracy",
        "top_k_categorical_accuracy": "top_k_accuracy", "sparse_top_k_categorical_accuracy": "top_k_accuracy",
        "mae": "mean_absolute_error", "mse": "mean_squared_error", "rmse": "root_mean_squared_error",
        "r2_score": "r2", "R2Score": "r2",
    },
    "optimizers": {"sgdm": "SGD", "momentum": "SGD", "adamw_torch": "AdamW", "adam_w": "AdamW"},
    "schedules": {
        "CosineAnnealingLR": "cosine", "CosineDecay": "cosine", "cosine_annealing": "cosine", "OneCycleLR": "one_cycle",
        "onecycle": "one_cycle", "StepLR": "step", "MultiStepLR": "step", "ExponentialLR": "exponential",
        "ExponentialDecay": "exponential", "LinearLR": "linear", "PolynomialLR": "polynomial",
        "PolynomialDecay": "polynomial", "ConstantLR": "constant", "plateau": "ReduceLROnPlateau",
        "ReduceOnPlateau": "ReduceLROnPlateau", "constant_with_warmup": "constant", "warmup_cosine": "cosine",
    },
    "layers": {
        "Dense": "Linear", "Conv2D": "Conv2d", "Conv1D": "Conv1d", "Conv3D": "Conv3d", "MaxPooling2D": "MaxPool2d",
        "AveragePooling2D": "AvgPool2d", "MaxPooling1D": "MaxPool1d", "BatchNormalization": "BatchNorm1d",
        "LayerNormalization": "LayerNorm", "GlobalAveragePooling2D": "AdaptiveAvgPool2d", "Activation": "ReLU",
        "LeakyRelu": "LeakyReLU", "Swish": "SiLU", "swish": "SiLU",
    },
    "models": {"MLP": "mlp", "ResNet18": "resnet18", "GPT": "gpt", "convnet": "cnn", "rnn": "lstm"},
    "callbacks": {
        "early_stopping": "EarlyStopping", "EarlyStoppingCallback": "EarlyStopping", "checkpoint": "ModelCheckpoint",
        "ExponentialMovingAverage": "EMA", "StochasticWeightAveraging": "EMA", "TerminateOnNan": "TerminateOnNaN",
        "CsvLogger": "CSVLogger",
    },
    "splits": {
        "train_test_split": "random", "stratify": "stratified", "shuffle": "random",
        "datetime": "time", "groups": "group", "fixed": "column",
        "KFold": "kfold", "StratifiedKFold": "kfold", "GroupKFold": "kfold", "StratifiedGroupKFold": "kfold",
        "RepeatedKFold": "kfold", "RepeatedStratifiedKFold": "kfold", "cross_validation": "kfold", "cv": "kfold",
        "TimeSeriesSplit": "time_series",
    },
    "transforms": {
        "StandardScaler": "standardize", "Normalize": "standardize", "normalize": "standardize",
        "zscore": "standardize",
        "MinMaxScaler": "scale", "minmax": "scale", "Rescaling": "scale", "ToTensor": "scale",
    },
    "augmentations": {
        "RandomHorizontalFlip": "random_flip", "RandomVerticalFlip": "random_flip", "RandomFlip": "random_flip",
        "flip": "random_flip", "hflip": "random_flip", "HorizontalFlip": "random_flip", "RandomCrop": "random_crop",
        "crop": "random_crop", "RandomTranslation": "random_crop", "random_shift": "random_crop",
        "random_translate": "random_crop", "RandomErasing": "cutout", "Cutout": "cutout", "CoarseDropout": "cutout",
        "RandomBrightness": "random_brightness", "brightness": "random_brightness",
        "RandomContrast": "random_contrast", "contrast": "random_contrast", "GaussianNoise": "gaussian_noise",
        "GaussNoise": "gaussian_noise", "noise": "gaussian_noise",
    },
    "sources": {"CSV": "csv", "numpy": "npy", "tabular": "csv", "mnist": "digits", "txt": "text"},
}  # fmt: skip

ARGUMENTS = {
    "learning_rate": "lr", "eta": "lr", "step_size": "lr", "alpha": "lr", "decay": "weight_decay", "wd": "weight_decay",
    "l2": "weight_decay", "beta_1": "betas", "beta_2": "betas", "beta1": "betas", "beta2": "betas", "epsilon": "eps",
    "units": "out_features", "filters": "out_channels", "features": "out_features", "channels": "out_channels",
    "strides": "stride", "rate": "p", "dropout_rate": "dropout", "pool_size": "kernel_size", "min_lr": "end",
    "eta_min": "end", "end_lr": "end", "warmup_steps": "warmup", "warmup_ratio": "warmup", "warmup_epochs": "warmup",
    "num_warmup_steps": "warmup", "test_size": "test", "val_size": "val", "validation": "val", "valid": "val",
    "validation_split": "val", "smoothing": "label_smoothing", "weight": "class_weight",
    "class_weights": "class_weight",
    "file": "path", "filename": "path", "filepath": "path", "label": "target", "labels": "target", "y": "target",
    "target_column": "target", "sep": "delimiter", "separator": "delimiter", "hidden_sizes": "hidden",
    "hidden_dim": "hidden", "hidden_layer_sizes": "hidden", "nhead": "heads", "num_heads": "heads", "n_head": "heads",
    "n_layer": "depth", "num_layers": "depth", "n_layers": "depth", "n_embd": "width", "d_model": "width",
    "hidden_size": "width", "block_size": "length", "seq_len": "length", "sequence_length": "length",
    "direction": "mode", "early_stopping_patience": "patience", "metric": "monitor", "threshold": "min_delta",
    "augmentation": "augment", "augmentations": "augment", "stddev": "std", "sigma": "std", "pad": "padding",
    "n_splits": "k", "num_folds": "k", "folds": "k", "n_repeats": "repeats", "group": "groups",
    "stratify": "stratified",
    "momentum_decay": "momentum", "normalization": "transform", "preprocessing": "transform",
}  # fmt: skip

VALUES = {
    "16-mixed": "fp16", "bf16-mixed": "bf16", "32-true": "fp32", "16": "fp16", "32": "fp32", "float32": "fp32",
    "float16": "fp16", "bfloat16": "bf16", "half": "fp16", "mixed": "auto", "gpu": "cuda", "GPU": "cuda",
    "0": "cuda", "1": "cuda",
}  # fmt: skip

COMPONENT_KEYS = ("name", "type", "class", "class_path", "class_name", "_target_", "_component_", "@optimizers")

WRAPPERS = ("init_args", "params", "kwargs", "args", "config")  # under which other libraries put the arguments

SUFFIXES = {
    ".csv": "{{csv: {{path: {}}}}}", ".tsv": '{{csv: {{path: {}, delimiter: "\\t"}}}}',
    ".txt": "{{text: {{path: {}}}}}",
    ".npz": "{{npz: {{path: {}}}}}", ".safetensors": "{{safetensors: {{path: {}}}}}",
    ".npy": "{{npy: {{x: {}, y: …}}}}",
}  # fmt: skip

REMOVED = {
    "restore_best_weights": "fit always leaves the best epoch's weights in the model",
    "verbose": "the command line has --quiet",
    "shuffle": "training rows are shuffled by (seed, epoch), the others never",
    "save_weights_only": "a checkpoint file holds weights only",
    "fused": "fitkit takes the fused kernel wherever torch has one",
    "foreach": "fitkit takes the fused kernel wherever torch has one",
    "capturable": "fitkit sets it where it is needed",
    "device": "the whole run has one device: fit.device",
    **dict.fromkeys(
        ("T_max", "total_steps", "steps_per_epoch", "decay_steps", "num_training_steps"),
        "a schedule spans the whole run by itself",
    ),
    "reduction": "an epoch's loss is the sum over samples divided by their count",
}
