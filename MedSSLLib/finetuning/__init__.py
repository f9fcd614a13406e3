"""Fine-tuning, with Mean Teacher and Mixup, and completion of one volume."""
