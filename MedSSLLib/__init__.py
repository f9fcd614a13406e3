"""MedSSL: self-supervised learning for medical image segmentation, headless.

Nothing heavy is imported here, so that ``medssl --help`` stays quick. Import what you need, for
example ``from MedSSLLib.finetuning.finetune import run_finetune``.
"""

__version__ = "0.1.0"
