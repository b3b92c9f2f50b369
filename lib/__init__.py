"""Sparse Fields Lab: what the notebooks stand on.

Letters, one meaning each
    B fields · N readings · M queries · C channels · K samples · L tokens · D width · H heads · S state
    s sites in [-1, 1]^2, s[..., 0] to the right, s[..., 1] downwards · y values, 0 to 1 for most worlds
    t flow time, 0 noise, 1 data · y_0 noise, y_1 data, y_t = (1 - t) y_0 + t y_1
    u = y_1 - y_0 the true velocity, v the model's · suffixes _obs (readings) and _qry (queries)
    In ssm.py, A, B, C and delta are those of the papers.

Reading order, each group importing only from itself and the groups before it
    world   worlds (realworlds, files, gaussian), data (layouts, augment) fields, readings, batches
            weights                                             learned numbers in files that run no code
    encode  layers (products), ssm (scans, fused), order, paths, encoders   parts of networks
            shares                                              the fields of a batch, a share of them to a thread
            versions, model (refined)                           the table of systems; readings to memory, memory to velocity
            posterior (basis, waves (climb))                    columns and readings to mean, deviation, samples and evidence
            hybrid (kernels, settings, dictionary)              readings to a mixture of Gaussian processes
    flow    flow, ode                                           loss, samples, solvers
            coupling, penalties                                 which noise belongs to which data, smoothness and spectra
    judge   baselines (perfield, optimal, oracle), metrics      what needs no network, and the scores of all
            v5 (priors, experts, dissect, refine)               ours: several posteriors, weighed by evidence; a flow from them
            diagnosis                                           what a model does besides its score
            plots (theme, maps, marks, png), report             figures, what a notebook shows
            widgets (aside, follow)                             explorers: slow answers, figures that follow
            claims (ledger, rules)                              what was promised, and the verdicts on it
            suspects (lineup)                                   what may cause the noise, and what proves it
    run     train (objective, optimisers, schedules,            training
            checkpoint, progress, stopping)
            arms, cost (memory), bench (races, overhead, latency, pace)  one arm of an experiment, what it costs
            peers                                               ConvCNP, trained on the same batches
            study (workers), attribution                        many arms in one table; which switch is worth what
            contest, showcase, realshow, learning               methods side by side; what V5 is shown by; what learning takes
            playground (view, stories, trained, exactflow)      one field, read by hand, answered at once; its stories
            canvas, export, serve (browsing)                    maps in the page, files, the page of its own
            techniques, design                                  the ten techniques; what a sweep runs, by rule
            synergy, hundred                                    what techniques give together; the hundred versions on the screen
            sweep (turns, course, crew, cluster), board         every task of a design once, here or on a cluster; how far it is
            evidence, family, answers, inquiry                  from tables to verdicts and sentences; versions side by side
            run (params, folders, kernel, page, machine, jobs)  notebooks in batch, with parameter files
            learn, reconstruct (intake, frame, delivery)        priors kept in files; a field from the user's own readings
            refs, publish, check (pictures)                     saved outputs, reference results, is all well
"""
