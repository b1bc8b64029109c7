"""A loaded model, its plan and its sequences."""
