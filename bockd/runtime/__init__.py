"""How operations wait, whatever drives them: steps, locks and their runners."""
