"""Synthetic heads with metastases, made from a seed."""
