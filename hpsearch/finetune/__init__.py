"""The shared fine-tuning kernel: the only room that knows torch and torchvision."""
