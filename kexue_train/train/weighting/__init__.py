"""How much each task counts: one number per micro-batch, which holds one task and whose loss it multiplies.

    scheme             weight of task i                               blind to      file
    initial, prior     1/U, U a constant loss                         -             fixed_units.py
    online             1/L̄, L̄ the running mean of its loss            scale         online.py
    generalised-mean   (L̄/M)^(γ-1), M the γ-mean of all L̄             joint scale   generalised_mean.py
    gradient-norm      ∝ 1/‖g‖                                        scale, shift  gradient_norm.py
    min-norm           its share in the shortest Σ αg of the simplex  shift         min_norm.py
    main-with-guards   λ that keeps the main task from hurting it     scale, shift  main_with_guards.py

``scale``: multiplying the loss of one task by a constant does not change the direction of the update; ``shift``: nor
does adding one. The last three ask for the Gram matrix of the tasks' gradients. ``sketch.py`` keeps about a thousand
numbers per task for that, and no gradient.

Sources: https://kexue.fm/archives/8870, https://kexue.fm/archives/8896, https://kexue.fm/archives/8907.
"""
