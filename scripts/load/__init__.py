"""What locustfile.py is made of beside Locust: what is sent, which answers are right, how the highest load is found."""
