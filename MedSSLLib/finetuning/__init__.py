"""Fine-tuning on labelled cases or slices, with Mean Teacher, Mixup, and completion of one
volume.
"""
