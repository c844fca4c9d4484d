"""What another policy would have earned, estimated from what was shown at random with known probabilities.

A *policy* puts items at places. A log holds, of each decision, the probability with which the policy that served put
the item there, and what the item earned. The estimators weigh what was earned by how much rather the *target* policy
would have shown it. Each says what it assumes of people (`Method.assumption`), for none is right without.

    log           the arrays that everything here reads
    plackett_luce the probabilities of drawn rankings
    single        one item is decided on: IPS, SNIPS, DM, DR
    slates        a list is decided on, place by place: SIPS, IIPS, RIPS, cascade-DR
    intervals     how sure a mean is, users being what is independent
    checks        logs that can't be right, and questions that the log can't answer
    report        all of it for one log of lists
"""
