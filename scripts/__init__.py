"""What a person runs now and then: `python -m scripts.<name>`."""
