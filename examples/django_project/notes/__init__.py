"""An application that keeps notes."""
