"""`utsuwad try`: a public site on which anyone tries Utsuwa in a container of their own, for a while.

It is a process of its own and a client of the daemon's REST API, with a certificate that is restricted to one
project: it has neither the daemon's socket nor any other right on the host.

places      the files of the site
settings    try.yaml
rest        requests to the daemon
visitors    containers of visitors: a few stand ready, more are made as they are used up
sessions    who has which container, until when
terminal    a shell that outlives the connections of the browser
turns       who may run Docker, of those who would like to
watch       what happens in a visitor's daemon
inside      questions to the daemon in a visitor's container
tour        the steps of the guided tour, and when they are done
records     feedback and statistics, without personal data
metrics     for Prometheus
addresses   who is connected, and how often
site        the HTTP API and the page
process     start, privileges, end
setup       `utsuwad try init`
"""
