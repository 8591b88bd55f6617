"""Whether training can run on this computer: `probes` finds facts, `diagnosis` judges them, `screen` shows the judgement."""
