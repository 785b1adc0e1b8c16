"""Networks that leave the process, and weights from elsewhere: saved, loaded, exported, converted, and measured."""
