"""The model layer: base and adapters, fine-tuning, checkpoints, and gradients of single examples."""
