// The users of the warehouse, made when MongoDB starts for the first time; more of them as docs/security.md says.
const team = db.getSiblingDB("tensordb");
team.createUser({ user: "viewer", pwd: process.env.VIEWER_PASSWORD, roles: [{ role: "read", db: "tensordb" }] });
team.createUser({ user: "writer", pwd: process.env.WRITER_PASSWORD, roles: [{ role: "readWrite", db: "tensordb" }] });
