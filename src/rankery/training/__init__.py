"""Training: run (parse, build, fit), loop, engine (the only module that knows accelerate), optim, checkpoint, tracking."""
