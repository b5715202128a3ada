"""Adjoined training in other people's trainers: a Lightning callback, a timm task, a Hugging Face trainer."""
