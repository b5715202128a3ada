"""Adjoined training in other trainers: a Lightning callback, a timm task, a Hugging Face trainer."""
