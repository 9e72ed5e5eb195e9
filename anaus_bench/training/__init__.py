"""The loop, pre-training, optimiser, schedules, and batches of fine-tuning."""
