"""How good a trained model is: its pictures and energies beside real ones."""
